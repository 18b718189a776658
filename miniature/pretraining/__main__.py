from miniature.pretraining.pretrain import main

if __name__ == '__main__':
    main()
